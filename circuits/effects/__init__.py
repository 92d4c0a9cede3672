"""What ablating one feature does to another, exactly; and the screens that propose candidates."""
