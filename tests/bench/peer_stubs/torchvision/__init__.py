"""The few names open_clip imports from torchvision, for the environment of `make peers`."""
