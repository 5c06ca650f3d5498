job "dotenv" {
  command = ["/bin/sh", "-c", "wc -c /run/secrets/*"]

  secret "db-password" {
    provider = "dotenv"

    config {
      key = "DB_PASSWORD"
    }
  }

  secret "api-token" {
    provider = "dotenv"
    target   = "/run/secrets/api"

    config {
      key = "API_TOKEN"
    }
  }
}
