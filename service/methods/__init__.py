"""Attribution methods, one generator a file: each yields questions about the model and is sent the answers."""
