"""CIFAR-10 in four visible steps: fetch, decode, augment, batch."""
