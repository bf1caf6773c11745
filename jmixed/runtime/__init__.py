"""How and where programs run, and how calls and files are checked: nothing about statistics."""
