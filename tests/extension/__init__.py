"""Extensions as a user would write them, without changing bigjax: one file each, in my_lab/."""
