"""Words and tables to terms: formulas as people type them, their columns, new rows of data."""
