"""What every room uses: errors, values, configurations, fragments, precision, the machine."""
