"""Prometheus' own tools, which judge rules and queries."""

from programs import prometheus, promtool

__all__ = ["prometheus", "promtool"]
