"""Attention in memory that does not grow with the square of the length (Rabe & Staats 2021)."""

from jaxremat.attention.dot_product import dot_product_attention as dot_product_attention
from jaxremat.attention.rewrite import find as find
from jaxremat.attention.rewrite import rewrite as rewrite
