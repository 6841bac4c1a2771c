-- Pause and resume, retry, priority, pauses between attempts, time limits, and what running out of memory leaves behind.

-- The queue's order. A copy of the spec's field, so that the claim is an index scan.
ALTER TABLE job ADD COLUMN priority INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100);
-- A queued job is not claimed before this: the pause after a lost trainer.
ALTER TABLE job ADD COLUMN not_before INTEGER NOT NULL DEFAULT 0;
ALTER TABLE job ADD COLUMN pause_requested_at INTEGER CHECK (pause_requested_at IS NULL OR status = 'running');
-- How often it was queued again by hand after it had ended. Losses are counted, and the end is unique, within a round.
ALTER TABLE job ADD COLUMN round INTEGER NOT NULL DEFAULT 0 CHECK (round >= 0);
-- Micro-batches are split into this many parts; doubled whenever a trainer runs out of memory.
ALTER TABLE job ADD COLUMN micro_batch_divisor INTEGER NOT NULL DEFAULT 1 CHECK (micro_batch_divisor >= 1);

ALTER TABLE attempt ADD COLUMN round INTEGER NOT NULL DEFAULT 0 CHECK (round >= 0);
ALTER TABLE attempt ADD COLUMN loss_cause TEXT CHECK (loss_cause IS NULL OR loss_cause IN ('died', 'silent', 'hung', 'out_of_memory'));
-- The job's `max_runtime_s`, counted over all attempts of the round, is used up then.
ALTER TABLE attempt ADD COLUMN deadline_at INTEGER;

ALTER TABLE event ADD COLUMN round INTEGER NOT NULL DEFAULT 0 CHECK (round >= 0);

-- The claim and the queue position.
CREATE INDEX job_queue ON job (status, priority DESC, id);
CREATE INDEX job_by_pause_request ON job (pause_requested_at) WHERE pause_requested_at IS NOT NULL;
CREATE INDEX attempt_open_by_deadline ON attempt (deadline_at) WHERE ended_at IS NULL AND deadline_at IS NOT NULL;

-- A job ends once per round.
DROP INDEX event_final;
CREATE UNIQUE INDEX event_final ON event (job_id, round) WHERE kind IN ('succeeded', 'failed', 'cancelled');
