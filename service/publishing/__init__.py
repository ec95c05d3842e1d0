"""What is published: models, releases, patches, drafts, and until when signed documents hold."""
