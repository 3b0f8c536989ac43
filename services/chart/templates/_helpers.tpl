{{- define "presswork.name" -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- end }}

{{- define "presswork.select" -}}
app.kubernetes.io/name: presswork
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "presswork.labels" -}}
{{ include "presswork.select" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "presswork.pod" -}}
serviceAccountName: {{ include "presswork.name" .root }}-{{ .part }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "presswork.confined" -}}
securityContext:
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "presswork.secretName" -}}
{{ if .Values.embedded.enabled }}{{ include "presswork.name" . }}-embedded{{ else }}{{ .Values.secret }}{{ end }}
{{- end }}

{{- define "presswork.secret" -}}
valueFrom: {secretKeyRef: {name: {{ include "presswork.secretName" .root }}, key: {{ .key }}}}
{{- end }}

{{- define "presswork.s3" -}}
{{ if .Values.embedded.enabled }}http://{{ include "presswork.name" . }}-s3:8333{{ else }}{{ .Values.s3.endpoint }}{{ end }}
{{- end }}

{{- define "presswork.store" -}}
- {name: AWS_ENDPOINT_URL, value: {{ include "presswork.s3" .root | quote }}}
- {name: AWS_REGION, value: {{ .root.Values.s3.region | quote }}}
- {name: PRESSWORK_BUCKET, value: {{ .root.Values.s3.bucket | quote }}}
- {name: PRESSWORK_PREFIX, value: {{ .root.Values.s3.prefix | quote }}}
- name: AWS_ACCESS_KEY_ID
  {{- include "presswork.secret" (dict "root" .root "key" "s3-access-key") | nindent 2 }}
- name: AWS_SECRET_ACCESS_KEY
  {{- include "presswork.secret" (dict "root" .root "key" "s3-secret-key") | nindent 2 }}
{{- end }}

{{- define "presswork.servers" -}}
- name: DATABASE_URL
  {{- include "presswork.secret" (dict "root" .root "key" (printf "%s-database-url" .role)) | nindent 2 }}
- name: REDIS_URL
  {{- include "presswork.secret" (dict "root" .root "key" (printf "%s-redis-url" .role)) | nindent 2 }}
{{- end }}

{{- define "presswork.autoscaled" -}}{{ range .Values.workers }}{{ if .autoscaling }}{{ .name }} {{ end }}{{ end }}{{- end }}

{{- define "presswork.image" -}}
image: "{{ with .root.Values.image.registry }}{{ . }}/{{ end }}{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}"
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- end }}
