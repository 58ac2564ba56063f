"""The plain and residual networks of section 4.2."""

from deepres.models.resnet import (
    MODELS,
    OPTIONS,
    ResNet,
    build_model,
    count_parameters,
    make_name,
    net_name,
    parse_name,
)

__all__ = ["MODELS", "OPTIONS", "ResNet", "build_model", "count_parameters", "make_name", "net_name", "parse_name"]
