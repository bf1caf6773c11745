"""What people read of a fit: names, tables and tests, as functions of data and fit."""
