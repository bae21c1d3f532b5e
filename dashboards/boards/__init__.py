"""The dashboards: one module each, in the order in which an operator opens them."""

from boards import actors, overview, python, sources, stores

# File name without `.json` -> the function that builds it.
BOARDS = {
    "overview": overview.board,
    "sources": sources.board,
    "actors": actors.board,
    "python": python.board,
    "stores": stores.board,
}
