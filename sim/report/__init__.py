"""What is handed over? The report as HTML, PDF and a workbook."""
