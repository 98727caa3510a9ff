"""Compare coupled steppers and recurrent networks on chaotic sequences."""
