"""Write and test transforms of the Millstream streaming feature engine, without a node."""

from millstream._context import Context
from millstream._style import Style, style_of
from millstream._transform import TransformInfo, transform

__all__ = ["Context", "Style", "TransformInfo", "style_of", "transform"]
