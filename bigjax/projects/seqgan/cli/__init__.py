"""Commands of this project, one file each."""
