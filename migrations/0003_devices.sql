-- What each attempt trains on, so that a server that starts again knows which cards are taken, and by how much.

-- JSON: what it is, and of a GPU its name and UUID. Attempts of earlier releases were on the processor.
ALTER TABLE attempt ADD COLUMN device TEXT NOT NULL DEFAULT '{"type":"cpu"}';
-- Bytes of the card's memory set aside for it; NULL where no other job may have the rest.
ALTER TABLE attempt ADD COLUMN reserved_bytes INTEGER CHECK (reserved_bytes IS NULL OR reserved_bytes >= 0);
