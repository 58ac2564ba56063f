"""deepres: "Deep Residual Learning for Image Recognition" on CIFAR-10, reproduced."""

__version__ = "0.1.0"
