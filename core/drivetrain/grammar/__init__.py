"""What an answer must look like: asked for by a request, compiled to masks, applied where tokens are chosen."""

from drivetrain.grammar.grammar import Grammar, GrammarKind

__all__ = ["Grammar", "GrammarKind"]
