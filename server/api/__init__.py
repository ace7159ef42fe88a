"""The Open Inference Protocol, version 2, over HTTP: a WSGI app in front of what a worker serves."""
