"""What the proxy says a request will find and take, beside what it then found and took."""
