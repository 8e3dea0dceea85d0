{{/* The name of the release's objects. */}}
{{- define "steelyard.name" -}}
{{- if contains "steelyard" .Release.Name -}}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{- else -}}{{ printf "%s-steelyard" .Release.Name | trunc 52 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{- define "steelyard.selectorLabels" -}}
app.kubernetes.io/name: steelyard
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "steelyard.labels" -}}
{{ include "steelyard.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "steelyard.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end -}}

{{- define "steelyard.serviceAccount.controller" -}}
{{ .Values.serviceAccount.controller.name | default (printf "%s-controller" (include "steelyard.name" .)) }}
{{- end -}}

{{- define "steelyard.serviceAccount.node" -}}
{{ .Values.serviceAccount.node.name | default (printf "%s-node" (include "steelyard.name" .)) }}
{{- end -}}

{{/* What every container of ours is told by its environment. */}}
{{- define "steelyard.env" -}}
- name: STEELYARD_LOG
  value: {{ .Values.log | quote }}
- name: STEELYARD_LOG_FORMAT
  value: {{ .Values.logFormat | quote }}
{{- with .Values.apiServer }}
{{- if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end -}}

{{/* YAML reads an unquoted on or off as a boolean. */}}
{{- define "steelyard.datapathMode" -}}
{{- $mode := .Values.datapath.mode -}}
{{- if kindIs "bool" $mode -}}{{ ternary "on" "off" $mode }}{{- else if has $mode (list "auto" "on" "off") -}}{{ $mode }}{{- else -}}{{ fail (printf "datapath.mode must be auto, on or off, not %v" $mode) }}{{- end -}}
{{- end -}}

{{/* The same of the grace period; what is no span would keep every agent from starting. */}}
{{- define "steelyard.resetGoneEndpoints" -}}
{{- $span := .Values.datapath.resetGoneEndpoints -}}
{{- if and (kindIs "bool" $span) (not $span) -}}off{{- else if regexMatch "^(off|[0-9]+(ms|s|m|h))$" (toString $span) -}}{{ $span }}{{- else -}}{{ fail (printf "datapath.resetGoneEndpoints must be a span such as 10s or off, not %v" $span) }}{{- end -}}
{{- end -}}

{{/* A whole number. Helm makes floats of large ones, and would quietly make 0 of a text such as 24h, which means something else. */}}
{{- define "steelyard.number" -}}
{{- if regexMatch "^[0-9]+([.][0-9]+)?(e[+][0-9]+)?$" (toString .) -}}{{ int64 . }}{{- else -}}{{ fail (printf "datapath.conntrack: %v is no whole number" .) }}{{- end -}}
{{- end -}}
