"""Stage 4: signups, usage, invoices and churn."""
