"""What the filter language raises; apart from it, for who only has to catch it."""

from __future__ import annotations


class FilterError(ValueError):
    """A text is no filter: what is wrong with it, and where."""

    def __init__(self, message: str, text: str, column: int) -> None:
        super().__init__(f"column {column}: {message}")
        self.message = message
        self.text = text
        self.column = column  # of the first character that is wrong; the first of all is 1

    def explain(self) -> str:
        """Three lines: the text, a caret under the place, what is wrong."""
        line = "".join(c if c.isprintable() else " " for c in self.text)
        return f"{line}\n{' ' * (self.column - 1)}^\n{self.message}"
