"""Where versions of models come from: a folder, or files elsewhere that are fetched by digest (`registry.py`)."""
