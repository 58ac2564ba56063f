"""Trained weights: the zoo, its cards, and the module that takes pixels."""

from deepres.weights.classifier import PixelClassifier
from deepres.weights.zoo import list_cards, load_pretrained

__all__ = ["PixelClassifier", "list_cards", "load_pretrained"]
