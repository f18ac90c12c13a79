"""What a user adds without touching bigjax: one file each, in my_lab/."""
