"""Structures of the residuals' covariance, a file each behind one contract."""
