"""What a user adds without touching bigjax: one file each, as docs/add_your_own.md shows them."""
