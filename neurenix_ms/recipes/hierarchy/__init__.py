"""Compare single, coupled and hybrid time-steppers."""
