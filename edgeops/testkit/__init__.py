"""Fakes of real interfaces and ways to break real things, for edgeops' own tests and for its users' tests."""
