"""The demo model `filetype`: what kind of file some bytes are, by magika's network."""
