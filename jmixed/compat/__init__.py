"""What only statsmodels' users need: its packed parameters, penalties, contrast classes and views."""
