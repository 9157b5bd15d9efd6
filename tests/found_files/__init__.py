"""`answerable models add` on files that nobody of this project made."""
