"""The tables and figures of both papers as data: their trainings and the numbers they print."""
