"""Child processes of our own, and the frames on their sockets."""
