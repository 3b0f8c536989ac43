{{/* The servers of a try-out, as compose.yaml runs them. The scripts in files/ are those of compose.yaml. */}}
{{- define "presswork.embedded" -}}
postgres:
  port: 5432
  user: 999
  args: [postgres, -c, max_connections=200, -c, wal_compression=on, -c, max_wal_size=2GB, -c, timezone=UTC]
  env: {POSTGRES_USER: presswork_admin, POSTGRES_DB: postgres, POSTGRES_INITDB_ARGS: --encoding=UTF8 --locale=C --auth=scram-sha-256}
  secrets: {POSTGRES_PASSWORD: postgres-password}
  probe: {exec: {command: [pg_isready, -q, -h, 127.0.0.1, -U, presswork_admin, -d, postgres]}}
  data: /var/lib/postgresql
  more: {run: /var/run/postgresql, shm: /dev/shm}
redis:
  port: 6379
  user: 999
  command: [sh, -ec, {{ .Files.Get "files/redis.sh" | toJson }}]
  secrets: {REDIS_PASSWORD: redis-password, WEB_PASSWORD: redis-web-password, SCHEDULER_PASSWORD: redis-scheduler-password, WORKER_PASSWORD: redis-worker-password}
  probe: {exec: {command: [sh, -c, "printf 'AUTH %s\\nPING\\n' $REDIS_PASSWORD | valkey-cli | grep -qx PONG"]}}
  data: /data
s3:
  port: 8333
  user: 1000
  command: [sh, -ec, {{ .Files.Get "files/s3.sh" | toJson }}]
  env: {PRESSWORK_BUCKET: {{ .Values.s3.bucket | quote }}, GOMEMLIMIT: 1GiB}
  secrets:
    S3_ACCESS_KEY: s3-access-key
    S3_SECRET_KEY: s3-secret-key
    WEED_JWT_SIGNING_KEY: s3-inner-password
    WEED_JWT_SIGNING_READ_KEY: s3-inner-password
    WEED_JWT_FILER_SIGNING_KEY: s3-inner-password
    WEED_JWT_FILER_SIGNING_READ_KEY: s3-inner-password
    WEED_ADMIN_PASSWORD: s3-inner-password
  probe: {httpGet: {path: /healthz, port: s3}}
  data: /data
{{- end }}

{{/* Until the migration, which is a post-install hook with these servers. */}}
{{- define "presswork.migrated" -}}
{{- if .root.Values.embedded.enabled }}
initContainers:
  - name: migrated
    {{- include "presswork.image" (dict "root" .root "image" .root.Values.image) | nindent 4 }}
    {{- include "presswork.confined" .root | nindent 4 }}
    command: [presswork, migrate, --wait, {{ .root.Values.migrate.deadlineSeconds | quote }}]
    env:
      {{- include "presswork.servers" . | nindent 6 }}
      - {name: TMPDIR, value: /tmp}
    resources: {{- toYaml .root.Values.migrate.resources | nindent 6 }}
    volumeMounts: [{name: tmp, mountPath: /tmp}]
{{- end }}
{{- end }}
