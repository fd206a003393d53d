{{- define "drivetrain.name" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{- define "drivetrain.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "drivetrain.labels" -}}
{{ include "drivetrain.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/component: {{ .Values.platform }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "drivetrain.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}{{ .Values.serviceAccount.name | default (include "drivetrain.name" .) }}
{{- else -}}{{ .Values.serviceAccount.name | default "default" }}{{- end -}}
{{- end -}}

{{- define "drivetrain.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Values.platform .Chart.AppVersion) }}
{{- end -}}

{{- define "drivetrain.device" -}}
{{- get (dict "cuda" "nvidia.com/gpu" "rocm" "amd.com/gpu" "gaudi" "habana.ai/gaudi") .Values.platform -}}
{{- end -}}

{{- define "drivetrain.claim" -}}
{{ .Values.models.existingClaim | default (printf "%s-models" (include "drivetrain.name" .)) }}
{{- end -}}

{{- define "drivetrain.hardening" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "drivetrain.environment" -}}
- name: DRIVETRAIN_HOME
  value: /var/lib/drivetrain
- name: HOME
  value: /var/lib/drivetrain
{{- with .Values.hubTokenSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: token
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}
