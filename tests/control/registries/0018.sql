BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0018');
CREATE TABLE api_tokens (
	id VARCHAR(16) NOT NULL, 
	secret_sha256 VARCHAR(64) NOT NULL, 
	name VARCHAR(63) NOT NULL, 
	role VARCHAR(32) NOT NULL, 
	created_at_s DOUBLE NOT NULL, 
	created_by VARCHAR(64) NOT NULL, 
	expires_at_s DOUBLE NOT NULL, 
	revoked_at_s DOUBLE, 
	used_at_s DOUBLE, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
CREATE TABLE arm_rollups (
	rollout_id INTEGER NOT NULL, 
	profile VARCHAR(63) NOT NULL, 
	arm VARCHAR(16) NOT NULL, 
	requests BIGINT NOT NULL, 
	errors JSON NOT NULL, 
	latency_ms BLOB NOT NULL, 
	histograms JSON NOT NULL, 
	temperature_max_c DOUBLE, 
	shadow BLOB, sampled BIGINT, 
	PRIMARY KEY (rollout_id, profile, arm), 
	FOREIGN KEY(rollout_id) REFERENCES rollouts (id)
);
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	at_s DOUBLE NOT NULL, 
	actor VARCHAR(64) NOT NULL, 
	action VARCHAR(64) NOT NULL, 
	subject VARCHAR(128) NOT NULL, 
	detail JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "audit" VALUES(1,1000000.0,'admin','rollout.create','rollout/1','{"release": "lines 1.0.0", "devices": 3}');
INSERT INTO "audit" VALUES(2,1000000.0,'admin','rollout.running','rollout/1','{}');
INSERT INTO "audit" VALUES(3,1000000.0,'edgeops','rollout.start-group','rollout/1','{"group": "1 (34%)", "devices": 1}');
CREATE TABLE boots (
	connection VARCHAR(63) NOT NULL, 
	unit VARCHAR(63) NOT NULL, 
	boot_id VARCHAR(64) NOT NULL, 
	first_seen_s DOUBLE NOT NULL, seq BIGINT DEFAULT '9007199254740992' NOT NULL, 
	PRIMARY KEY (connection, unit, boot_id), 
	FOREIGN KEY(connection, unit) REFERENCES units (connection, unit)
);
INSERT INTO "boots" VALUES('dev-002','self','boot-1',1000000.0,0);
CREATE TABLE command_parts (
	command_id VARCHAR(63) NOT NULL, 
	"offset" BIGINT NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (command_id, "offset"), 
	FOREIGN KEY(command_id) REFERENCES commands (id)
);
CREATE TABLE commands (
	id VARCHAR(63) NOT NULL, 
	connection VARCHAR(63) NOT NULL, 
	unit VARCHAR(63) NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	wish BLOB NOT NULL, 
	created_at_s DOUBLE NOT NULL, 
	created_by VARCHAR(64) NOT NULL, 
	expires_at_s DOUBLE NOT NULL, 
	published_at_s DOUBLE, 
	answered_at_s DOUBLE, 
	state VARCHAR(32) NOT NULL, 
	code VARCHAR(64) NOT NULL, 
	detail VARCHAR(512) NOT NULL, 
	total BIGINT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE device_groups (
	name VARCHAR(63) NOT NULL, 
	"query" TEXT NOT NULL, 
	devices JSON NOT NULL, 
	created_at_s DOUBLE NOT NULL, 
	created_by VARCHAR(64) NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE device_rollups (
	connection VARCHAR(63) NOT NULL, 
	unit VARCHAR(63) NOT NULL, 
	model VARCHAR(63) NOT NULL, 
	release VARCHAR(64) NOT NULL, 
	span_s INTEGER NOT NULL, 
	start_s BIGINT NOT NULL, 
	requests BIGINT NOT NULL, 
	errors JSON NOT NULL, 
	latency_ms BLOB NOT NULL, 
	histograms JSON NOT NULL, 
	temperature_max_c DOUBLE, shadow BLOB, sampled BIGINT, 
	PRIMARY KEY (connection, unit, model, release, span_s, start_s)
);
CREATE TABLE devices (
	connection VARCHAR(63) NOT NULL, 
	profile VARCHAR(63) NOT NULL, 
	labels JSON NOT NULL, 
	certificate_pem TEXT NOT NULL, 
	enrolled_at_s DOUBLE NOT NULL, 
	revoked_at_s DOUBLE, 
	agent_version VARCHAR(64) NOT NULL, 
	online BOOLEAN NOT NULL, 
	presence_at_s DOUBLE, 
	last_seen_s DOUBLE, 
	rejected_messages BIGINT NOT NULL, 
	rejected_last VARCHAR(512) NOT NULL, previous_certificate_pem TEXT DEFAULT '' NOT NULL, older_certificates JSON DEFAULT '[]' NOT NULL, renewed_at_s DOUBLE, renew_wanted_at_s DOUBLE, clone_signs INTEGER DEFAULT '0' NOT NULL, cloned_since_s DOUBLE, figures BLOB, figures_at_s DOUBLE, dropped_windows BIGINT DEFAULT '0' NOT NULL, kind VARCHAR(16) DEFAULT 'device' NOT NULL, 
	PRIMARY KEY (connection)
);
INSERT INTO "devices" VALUES('dev-000','raspberry-pi-4','{"site": "b"}','',0.0,NULL,'',1,NULL,NULL,0,'','','[]',NULL,NULL,0,NULL,NULL,NULL,0,'device');
INSERT INTO "devices" VALUES('dev-001','intel-nuc','{"site": "a"}','',0.0,NULL,'',1,NULL,NULL,0,'','','[]',NULL,NULL,0,NULL,NULL,NULL,0,'device');
INSERT INTO "devices" VALUES('dev-002','jetson-orin-nano','{"site": "b"}','',0.0,NULL,'0.1.0',1,NULL,1000000.0,0,'','','[]',NULL,NULL,0,NULL,NULL,NULL,0,'device');
CREATE TABLE enrolment_tokens (
	id VARCHAR(16) NOT NULL, 
	secret_sha256 VARCHAR(64) NOT NULL, 
	profile VARCHAR(63), 
	name VARCHAR(63), 
	labels JSON NOT NULL, 
	created_at_s DOUBLE NOT NULL, 
	created_by VARCHAR(64) NOT NULL, 
	expires_at_s DOUBLE NOT NULL, 
	used_at_s DOUBLE, 
	used_by VARCHAR(63), kind VARCHAR(16) DEFAULT 'device' NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (secret_sha256)
);
CREATE TABLE freezes (
	id INTEGER NOT NULL, 
	since_s DOUBLE NOT NULL, 
	actor VARCHAR(64) NOT NULL, 
	reason VARCHAR(512) NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE generations (
	connection VARCHAR(63) NOT NULL, 
	unit VARCHAR(63) NOT NULL, 
	generation BIGINT NOT NULL, 
	components BLOB NOT NULL, 
	cause VARCHAR(128) NOT NULL, 
	created_at_s DOUBLE NOT NULL, 
	PRIMARY KEY (connection, unit, generation), 
	FOREIGN KEY(connection, unit) REFERENCES units (connection, unit)
);
INSERT INTO "generations" VALUES('dev-002','self',1,X'5B7B22616C6C6F775F646F776E6772616465223A66616C73652C22646967657374223A227368613235363A312E302E302D6A6574736F6E2D6F72696E2D6E616E6F222C226B696E64223A226D6F64656C222C226E616D65223A226C696E6573222C2272656C65617365223A22312E302E30222C227365745F6E616D65223A22222C22736861646F77223A6E756C6C2C22746172676574223A226C696E65732F312E302E302F6A6574736F6E2D6F72696E2D6E616E6F2E656467656F7073227D5D','rollout 1',1000000.0);
CREATE TABLE measurements (
	id VARCHAR(63) NOT NULL, 
	connection VARCHAR(63) NOT NULL, 
	command BLOB NOT NULL, 
	created_at_s DOUBLE NOT NULL, 
	created_by VARCHAR(64) NOT NULL, 
	expires_at_s DOUBLE NOT NULL, 
	sent_at_s DOUBLE, 
	answered_at_s DOUBLE, 
	answer BLOB, 
	certificate_pem TEXT NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(connection) REFERENCES devices (connection)
);
CREATE TABLE progress (
	connection VARCHAR(63) NOT NULL, 
	unit VARCHAR(63) NOT NULL, 
	boot_id VARCHAR(64) NOT NULL, 
	seq BIGINT NOT NULL, 
	component VARCHAR(63) NOT NULL, 
	generation BIGINT NOT NULL, 
	step BIGINT NOT NULL, 
	state VARCHAR(32) NOT NULL, 
	release VARCHAR(64) NOT NULL, 
	percent DOUBLE, 
	code VARCHAR(64), 
	detail VARCHAR(512) NOT NULL, 
	device_at_s DOUBLE NOT NULL, 
	received_at_s DOUBLE NOT NULL, 
	PRIMARY KEY (connection, unit, boot_id, seq)
);
CREATE TABLE request_keys (
	principal VARCHAR(64) NOT NULL, 
	"key" VARCHAR(128) NOT NULL, 
	method VARCHAR(8) NOT NULL, 
	path TEXT NOT NULL, 
	body_sha256 VARCHAR(64) NOT NULL, 
	at_s DOUBLE NOT NULL, 
	status INTEGER, 
	content_type VARCHAR(128) NOT NULL, 
	answer BLOB, 
	PRIMARY KEY (principal, "key")
);
CREATE TABLE rig_runs (
	id VARCHAR(63) NOT NULL, 
	rollout_id INTEGER NOT NULL, 
	connection VARCHAR(63) NOT NULL, 
	attempt INTEGER NOT NULL, 
	bundles BLOB NOT NULL, 
	created_at_s DOUBLE NOT NULL, 
	expires_at_s DOUBLE NOT NULL, 
	sent_at_s DOUBLE, 
	given_up_at_s DOUBLE, 
	answered_at_s DOUBLE, 
	answer BLOB, 
	certificate_pem TEXT NOT NULL, 
	statement BLOB, 
	verdict VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (rollout_id, connection, attempt), 
	FOREIGN KEY(rollout_id) REFERENCES rollouts (id), 
	FOREIGN KEY(connection) REFERENCES devices (connection)
);
CREATE TABLE rigs (
	connection VARCHAR(63) NOT NULL, 
	boot_id VARCHAR(64) NOT NULL, 
	seq BIGINT NOT NULL, 
	ended_boots JSON NOT NULL, 
	report BLOB, 
	reported_at_s DOUBLE, 
	gone_since_s DOUBLE, 
	PRIMARY KEY (connection), 
	FOREIGN KEY(connection) REFERENCES devices (connection)
);
CREATE TABLE rollout_groups (
	rollout_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	label VARCHAR(64) NOT NULL, 
	started_at_s DOUBLE, 
	window_from_s DOUBLE, 
	finished_at_s DOUBLE, promoted_at_s DOUBLE, 
	PRIMARY KEY (rollout_id, position), 
	FOREIGN KEY(rollout_id) REFERENCES rollouts (id)
);
INSERT INTO "rollout_groups" VALUES(1,0,'1 (34%)',1000000.0,1000000.0,NULL,NULL);
INSERT INTO "rollout_groups" VALUES(1,1,'2 (100%)',NULL,NULL,NULL,NULL);
CREATE TABLE rollout_members (
	rollout_id INTEGER NOT NULL, 
	connection VARCHAR(63) NOT NULL, 
	unit VARCHAR(63) NOT NULL, 
	position INTEGER NOT NULL, 
	profile VARCHAR(63) NOT NULL, 
	component VARCHAR(63) NOT NULL, 
	generation BIGINT, 
	reached BOOLEAN NOT NULL, 
	state VARCHAR(32) NOT NULL, 
	step BIGINT NOT NULL, 
	code VARCHAR(64), 
	detail VARCHAR(512) NOT NULL, 
	changed_at_s DOUBLE, first_generation BIGINT, attempts INTEGER DEFAULT '0' NOT NULL, returned_generation BIGINT, arm VARCHAR(16) DEFAULT '' NOT NULL, 
	PRIMARY KEY (rollout_id, connection, unit), 
	FOREIGN KEY(connection, unit) REFERENCES units (connection, unit), 
	FOREIGN KEY(rollout_id, position) REFERENCES rollout_groups (rollout_id, position), 
	FOREIGN KEY(rollout_id) REFERENCES rollouts (id)
);
INSERT INTO "rollout_members" VALUES(1,'dev-002','self',0,'jetson-orin-nano','lines',1,1,'confirmed',0,NULL,'',1000000.0,1,1,NULL,'');
INSERT INTO "rollout_members" VALUES(1,'dev-001','self',1,'intel-nuc','lines',NULL,0,'idle',0,NULL,'',NULL,NULL,0,NULL,'');
INSERT INTO "rollout_members" VALUES(1,'dev-000','self',1,'raspberry-pi-4','lines',NULL,0,'idle',0,NULL,'',NULL,NULL,0,NULL,'');
CREATE TABLE rollout_profiles (
	rollout_id INTEGER NOT NULL, 
	profile VARCHAR(63) NOT NULL, 
	target VARCHAR(255) NOT NULL, 
	digest VARCHAR(80) NOT NULL, 
	stopped_at_s DOUBLE, 
	reason TEXT NOT NULL, reference JSON DEFAULT '{}' NOT NULL, reference_samples INTEGER DEFAULT '0' NOT NULL, calibration BLOB, 
	PRIMARY KEY (rollout_id, profile), 
	FOREIGN KEY(rollout_id) REFERENCES rollouts (id)
);
INSERT INTO "rollout_profiles" VALUES(1,'raspberry-pi-4','lines/1.0.0/raspberry-pi-4.edgeops','sha256:1.0.0-raspberry-pi-4',NULL,'','{}',0,NULL);
INSERT INTO "rollout_profiles" VALUES(1,'intel-nuc','lines/1.0.0/intel-nuc.edgeops','sha256:1.0.0-intel-nuc',NULL,'','{}',0,NULL);
INSERT INTO "rollout_profiles" VALUES(1,'jetson-orin-nano','lines/1.0.0/jetson-orin-nano.edgeops','sha256:1.0.0-jetson-orin-nano',NULL,'','{}',0,NULL);
CREATE TABLE rollouts (
	id INTEGER NOT NULL, 
	model VARCHAR(63) NOT NULL, 
	version VARCHAR(64) NOT NULL, 
	release_number BIGINT NOT NULL, 
	policy BLOB NOT NULL, 
	selection BLOB NOT NULL, 
	state VARCHAR(32) NOT NULL, 
	reason TEXT NOT NULL, 
	figures JSON NOT NULL, 
	created_at_s DOUBLE NOT NULL, 
	created_by VARCHAR(64) NOT NULL, 
	started_at_s DOUBLE, 
	ended_at_s DOUBLE, approved_by VARCHAR(64), controlled BOOLEAN DEFAULT 0 NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "rollouts" VALUES(1,'lines','1.0.0',1,X'7B22617070726F76616C223A66616C73652C2262616B655F73223A302E302C22636F6E74726F6C223A22222C226761746573223A7B2261677265656D656E745F6D696E223A6E756C6C2C2264726966745F6D6178223A6E756C6C2C226572726F725F726174655F696E6372656173655F6D6178223A6E756C6C2C226572726F725F726174655F6D6178223A6E756C6C2C226661696C7572655F6D6178223A302E302C2266616C73655F616C61726D223A302E30312C2268656C645F6D6178223A6E756C6C2C226C6174656E63795F7039355F6D735F6D6178223A6E756C6C2C226C6174656E63795F7039355F726174696F5F6D6178223A6E756C6C2C226D696E5F636F756E74223A312C2272656A65637465645F6D6178223A6E756C6C2C22737563636573735F6D696E223A312E302C2274656D70657261747572655F635F6D6178223A6E756C6C2C2274696D65645F6F75745F6D6178223A6E756C6C2C2274696D656F75745F73223A3130307D2C2267726F757073223A5B22333425222C2231303025225D2C226F6E5F6661696C757265223A2273746F70222C226F766572726964655F686F6C6473223A66616C73652C2272617465223A6E756C6C2C2272657472696573223A302C227269675F676F6E655F73223A3330302E302C227269675F74696D656F75745F73223A333630302E302C2272696773223A5B5D2C227363686564756C65223A7B2264617973223A5B5D2C226E6F745F6265666F72655F73223A6E756C6C2C2274696D655F7A6F6E65223A22555443222C2277696E646F77223A22227D2C22736861646F77223A6E756C6C7D',X'7B2264657669636573223A5B5D2C2267726F7570223A22222C226C6162656C73223A7B7D2C2270726F66696C6573223A5B5D2C227768657265223A22227D','running','group 1 (34%) is next','[]',1000000.0,'admin',1000000.0,NULL,NULL,0);
CREATE TABLE telemetry_rollups (
	model VARCHAR(63) NOT NULL, 
	release VARCHAR(64) NOT NULL, 
	profile VARCHAR(63) NOT NULL, 
	span_s INTEGER NOT NULL, 
	start_s BIGINT NOT NULL, 
	requests BIGINT NOT NULL, 
	errors JSON NOT NULL, 
	latency_ms BLOB NOT NULL, histograms JSON DEFAULT '{}' NOT NULL, temperature_max_c DOUBLE, shadow BLOB, sampled BIGINT, 
	PRIMARY KEY (model, release, profile, span_s, start_s)
);
CREATE TABLE telemetry_totals (
	connection VARCHAR(63) NOT NULL, 
	unit VARCHAR(63) NOT NULL, 
	model VARCHAR(63) NOT NULL, 
	release VARCHAR(64) NOT NULL, 
	requests BIGINT NOT NULL, 
	errors JSON NOT NULL, 
	latency_ms BLOB NOT NULL, 
	updated_at_s DOUBLE NOT NULL, 
	PRIMARY KEY (connection, unit, model, release)
);
CREATE TABLE telemetry_windows (
	connection VARCHAR(63) NOT NULL, 
	unit VARCHAR(63) NOT NULL, 
	boot_id VARCHAR(64) NOT NULL, 
	seq BIGINT NOT NULL, 
	received_at_s DOUBLE NOT NULL, 
	payload BLOB NOT NULL, summed BOOLEAN DEFAULT 0 NOT NULL, 
	PRIMARY KEY (connection, unit, boot_id, seq)
);
CREATE TABLE units (
	connection VARCHAR(63) NOT NULL, 
	unit VARCHAR(63) NOT NULL, 
	boot_id VARCHAR(64) NOT NULL, 
	seq BIGINT NOT NULL, 
	observed_generation BIGINT NOT NULL, 
	reported BLOB, 
	reported_at_s DOUBLE, 
	desired_generation BIGINT NOT NULL, 
	desired_components BLOB NOT NULL, 
	publish_wanted BIGINT NOT NULL, 
	publish_done BIGINT NOT NULL, 
	published_at_s DOUBLE, 
	published_until_s DOUBLE, override_holds BOOLEAN DEFAULT 0 NOT NULL, profile VARCHAR(63) DEFAULT '' NOT NULL, labels JSON DEFAULT '{}' NOT NULL, added_at_s DOUBLE DEFAULT '0' NOT NULL, 
	PRIMARY KEY (connection, unit), 
	FOREIGN KEY(connection) REFERENCES devices (connection)
);
INSERT INTO "units" VALUES('dev-000','self','',0,0,NULL,NULL,0,X'5B5D',0,0,NULL,NULL,0,'raspberry-pi-4','{}',0.0);
INSERT INTO "units" VALUES('dev-001','self','',0,0,NULL,NULL,0,X'5B5D',0,0,NULL,NULL,0,'intel-nuc','{}',0.0);
INSERT INTO "units" VALUES('dev-002','self','boot-1',1,1,X'7B226167656E745F76657273696F6E223A22302E312E30222C2261745F73223A313030303030302E302C2261747472696275746573223A7B7D2C22626F6F745F6964223A22626F6F742D31222C226361706162696C6974696573223A7B7D2C22636F6D706F6E656E7473223A5B7B22616374697665223A7B22646967657374223A227368613235363A312E302E302D6A6574736F6E2D6F72696E2D6E616E6F222C226E756D626572223A312C2272656C65617365223A22312E302E30227D2C22656E64706F696E74223A6E756C6C2C226661696C757265223A6E756C6C2C2266616C6C6261636B223A6E756C6C2C2267656E65726174696F6E223A312C2268656C645F726561736F6E223A6E756C6C2C2268656C645F756E74696C5F73223A6E756C6C2C226B696E64223A226D6F64656C222C226E616D65223A226C696E6573222C2273656C665F74657374223A6E756C6C2C227374617465223A22636F6E6669726D6564227D5D2C22636F6E6E656374696F6E223A226465762D303032222C226665617475726573223A5B22736861646F77225D2C22666C656574223A226631222C226F627365727665645F67656E65726174696F6E223A312C2270726F66696C65223A22616E79222C2272656675736564223A6E756C6C2C22736368656D61223A312C22736571223A312C227374616C655F73223A6E756C6C2C22756E6974223A2273656C66227D',1000000.0,1,X'5B7B22616C6C6F775F646F776E6772616465223A66616C73652C22646967657374223A227368613235363A312E302E302D6A6574736F6E2D6F72696E2D6E616E6F222C226B696E64223A226D6F64656C222C226E616D65223A226C696E6573222C2272656C65617365223A22312E302E30222C227365745F6E616D65223A22222C22736861646F77223A6E756C6C2C22746172676574223A226C696E65732F312E302E302F6A6574736F6E2D6F72696E2D6E616E6F2E656467656F7073227D5D',1,0,NULL,NULL,0,'jetson-orin-nano','{}',0.0);
CREATE INDEX ix_devices_profile ON devices (profile);
CREATE INDEX ix_progress_received_at_s ON progress (received_at_s);
CREATE INDEX ix_rollouts_model ON rollouts (model);
CREATE INDEX ix_rollouts_state ON rollouts (state);
CREATE INDEX ix_telemetry_windows_received_at_s ON telemetry_windows (received_at_s);
CREATE INDEX ix_units_published_until_s ON units (published_until_s);
CREATE INDEX ix_rollout_members_unit ON rollout_members (connection, unit, component, generation);
CREATE INDEX ix_telemetry_rollups_start_s ON telemetry_rollups (span_s, start_s);
CREATE INDEX ix_request_keys_at_s ON request_keys (at_s);
CREATE INDEX ix_telemetry_windows_summed ON telemetry_windows (summed, received_at_s);
CREATE INDEX ix_device_rollups_start_s ON device_rollups (span_s, start_s);
CREATE INDEX ix_commands_connection ON commands (connection);
CREATE INDEX ix_commands_state ON commands (state);
CREATE INDEX ix_units_profile ON units (profile);
CREATE INDEX ix_measurements_connection ON measurements (connection, created_at_s);
CREATE INDEX ix_measurements_expires_at_s ON measurements (expires_at_s);
CREATE TRIGGER audit_is_kept_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
CREATE TRIGGER audit_is_kept_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
CREATE INDEX ix_devices_kind ON devices (kind);
CREATE INDEX ix_rig_runs_connection ON rig_runs (connection);
COMMIT;
