"""Options: their defaults, names, rules and forms. Works without importing RecBole until metrics are checked."""

from recbole_adrrec.options.command_line import CommandLine, parse_command_line, parse_value
from recbole_adrrec.options.data_files import check_data, missing_data
from recbole_adrrec.options.names import (
    RUN_OPTIONS,
    check_model,
    check_names,
    known_options,
    model_names,
    nearest,
    suggestion,
)
from recbole_adrrec.options.properties import (
    comments,
    describe_options,
    load_properties,
    load_tuned,
    property_names,
    read_config_file,
    tuned_names,
)
from recbole_adrrec.options.rules import check_global_split, check_option, check_values
from recbole_adrrec.options.schema import MODEL_OPTIONS, ModelOptions
