"""The demo model `resnet50_torch`: the network and the weights of `resnet50`, run by torch."""
