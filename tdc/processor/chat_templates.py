# SPDX-License-Identifier: Apache-2.0
"""Chat templates (Jinja) with video, image and audio parts.

A video or an image becomes its placeholder and a newline before the question; sound lives in the
frames' context tokens and leaves no mark in the text.
"""

from __future__ import annotations

_PARTS = """\
{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'video' -%}{{ '<video>\\n' }}
{%- elif part.type == 'image' -%}{{ '<image>\\n' }}
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""

# Qwen2 and most others.
CHATML = (
    _PARTS
    + """\
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}{{ parts(message.content) }}{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
)

# Llama 3.x.
LLAMA3 = (
    _PARTS
    + """\
{{- '<|begin_of_text|>' -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}{{ parts(message.content) }}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""
)

BY_MODEL_TYPE = {"qwen2": CHATML, "llama": LLAMA3}
