"""Attribution methods, one generator a file, over a gradient oracle that somebody else drives."""
