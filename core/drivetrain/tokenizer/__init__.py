"""Text to token ids and back, from any of the files that models come with.

tokenizer       the `Tokenizer` that everything else uses
pieces          what each token id contributes to the text, in bytes
folder          Hugging Face folders: tokenizer.json, tokenizer.model, vocab.json + merges.txt
sentencepiece   SentencePiece models, read without their library
gguf            tokenizers rebuilt from GGUF metadata
pretokenizers   how byte-level families split text before merging
"""

from drivetrain.tokenizer.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
