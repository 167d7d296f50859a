"""What does a customer owe? From the meter to invoices."""
