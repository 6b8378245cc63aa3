"""Every migration of the coordinator's database, oldest first; one that shipped never changes.

Times are seconds since 1970-01-01 UTC. No table holds a secret that opens anything: of an invite
there is only a key derived from its secret, of a client only public keys.
"""

from typing import Final

INITIAL: Final = """
CREATE TABLE clients (
    client_id TEXT PRIMARY KEY,
    node_id INTEGER NOT NULL UNIQUE,
    identity_key BLOB NOT NULL UNIQUE,
    certificate BLOB NOT NULL,
    certificate_expires_unix_s REAL NOT NULL,
    next_certificate BLOB,
    next_certificate_expires_unix_s REAL,
    status TEXT NOT NULL CHECK (status IN ('active', 'revoked')),
    since_unix_s REAL NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    last_seen_unix_s REAL,
    doing TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE TABLE invites (
    token_id BLOB PRIMARY KEY,
    client_id TEXT NOT NULL,
    proof_key BLOB NOT NULL,
    created_unix_s REAL NOT NULL,
    expires_unix_s REAL NOT NULL,
    wrong_proofs INTEGER NOT NULL DEFAULT 0,
    used_by BLOB,
    used_unix_s REAL
) STRICT;

CREATE TABLE nonces (
    nonce BLOB PRIMARY KEY,
    token_id BLOB NOT NULL REFERENCES invites ON DELETE CASCADE,
    expires_unix_s REAL NOT NULL
) STRICT;

CREATE TABLE directories (
    version INTEGER PRIMARY KEY,
    envelope BLOB NOT NULL,
    published_unix_s REAL NOT NULL
) STRICT;

CREATE TABLE messages (
    message_id TEXT PRIMARY KEY,
    run_id INTEGER NOT NULL,
    group_id TEXT NOT NULL,
    client_id TEXT NOT NULL REFERENCES clients,
    size_bytes INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    created_unix_s REAL NOT NULL,
    deadline_unix_s REAL NOT NULL,
    reply_size_bytes INTEGER,
    reply_sha256 BLOB
) STRICT;
CREATE INDEX messages_of_client ON messages (client_id, created_unix_s);
CREATE INDEX messages_of_group ON messages (run_id, group_id);

CREATE TABLE campaigns (
    campaign_id INTEGER PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'running', 'ended', 'failed')),
    reason TEXT NOT NULL DEFAULT '',
    release_sha256 BLOB NOT NULL,
    settings TEXT NOT NULL,
    created_unix_s REAL NOT NULL,
    changed_unix_s REAL NOT NULL
) STRICT;

CREATE TABLE rounds (
    campaign_id INTEGER NOT NULL REFERENCES campaigns,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'closed', 'abandoned')),
    plan BLOB,
    adapter_path TEXT,
    adapter_sha256 BLOB,
    strategy_path TEXT,
    strategy_sha256 BLOB,
    metrics TEXT NOT NULL DEFAULT '{}',
    opened_unix_s REAL NOT NULL,
    closed_unix_s REAL,
    PRIMARY KEY (campaign_id, round, attempt)
) STRICT
"""

SEARCH: Final = """
CREATE TABLE search_points (
    base_fingerprint TEXT NOT NULL,
    measured_with TEXT NOT NULL,
    stage TEXT NOT NULL CHECK (stage IN ('bound', 'quick', 'full')),
    settings TEXT NOT NULL,
    seed INTEGER NOT NULL,
    figures TEXT NOT NULL,
    refused TEXT NOT NULL DEFAULT '',
    seconds REAL NOT NULL,
    measured_unix_s REAL NOT NULL,
    PRIMARY KEY (base_fingerprint, measured_with, stage, settings, seed)
) STRICT
"""

SEARCH_ATTEMPTS: Final = """
CREATE TABLE search_attempts (
    base_fingerprint TEXT NOT NULL,
    measured_with TEXT NOT NULL,
    stage TEXT NOT NULL CHECK (stage IN ('bound', 'quick', 'full')),
    settings TEXT NOT NULL,
    seed INTEGER NOT NULL,
    failure TEXT NOT NULL DEFAULT '',
    seconds REAL NOT NULL DEFAULT 0,
    begun_unix_s REAL NOT NULL,
    PRIMARY KEY (base_fingerprint, measured_with, stage, settings, seed)
) STRICT
"""

SECURE_SUMS: Final = """
CREATE TABLE sum_decisions (
    sum_id TEXT NOT NULL,
    decision TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (sum_id, decision)
) STRICT;

ALTER TABLE messages ADD COLUMN most_reply_bytes INTEGER NOT NULL DEFAULT 67108864
"""

RESULT_LOG: Final = """
CREATE TABLE sum_results (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    sum_id TEXT NOT NULL UNIQUE,
    result BLOB NOT NULL
) STRICT
"""

LEDGER_RECEIPTS: Final = """
CREATE TABLE ledger_receipts (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    client_id TEXT NOT NULL REFERENCES clients,
    receipt BLOB NOT NULL,
    signed_unix_s REAL NOT NULL
) STRICT;
CREATE INDEX receipts_of_client ON ledger_receipts (client_id, position)
"""

CAMPAIGN_ORDERS: Final = """
CREATE TABLE campaign_orders (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    campaign_id INTEGER NOT NULL REFERENCES campaigns,
    command TEXT NOT NULL CHECK (command IN ('pause', 'resume', 'abort', 'rollback')),
    at_once INTEGER NOT NULL,
    to_round INTEGER,
    after_round INTEGER NOT NULL,
    reason TEXT NOT NULL,
    given_unix_s REAL NOT NULL
) STRICT;
CREATE INDEX orders_of_campaign ON campaign_orders (campaign_id, position);

ALTER TABLE clients ADD COLUMN version TEXT NOT NULL DEFAULT '';
ALTER TABLE clients ADD COLUMN free_memory_bytes INTEGER;
ALTER TABLE clients ADD COLUMN examples INTEGER
"""

MIGRATIONS: Final = (
    INITIAL,
    SEARCH,
    SEARCH_ATTEMPTS,
    SECURE_SUMS,
    RESULT_LOG,
    LEDGER_RECEIPTS,
    CAMPAIGN_ORDERS,
)
