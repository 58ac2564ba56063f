"""The plain and residual networks of section 4.2."""

from deepres.models.resnet import MODELS, OPTIONS, ResNet, build_model, count_parameters, net_name

__all__ = ["MODELS", "OPTIONS", "ResNet", "build_model", "count_parameters", "net_name"]
