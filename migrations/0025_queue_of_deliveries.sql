-- The order in which deliveries are worked off: a forge's before what polling found, then the oldest. Without this index each
-- claim sorted all that waited, which cost most of a processor while deliveries came faster than they were worked off.
CREATE INDEX webhook_deliveries_queued ON webhook_deliveries (starts_with(delivery_id, 'poll:'), id)
    WHERE state = 'queued';
