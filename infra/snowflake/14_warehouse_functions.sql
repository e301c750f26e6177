-- The function, as a Python function inside the warehouse: no service and no gateway. It reads scoped URLs.
-- Run by a role with CREATE STAGE and CREATE FUNCTION on the schema, from a client that can upload (not
-- Snowsight). `files` is the folder that `python -m app.snowflake.udf_bundle FOLDER` wrote, with forward
-- slashes; `network` is the name of the network in it, without .h5.

USE SCHEMA <% database %>.<% schema %>;

-- The code and the network, apart from the images. Deleting a file there breaks the functions.
CREATE STAGE IF NOT EXISTS <% code_stage %>
    COMMENT = 'What ext_classify runs inside a warehouse';

-- As they are: Snowflake would gzip them, and Python would find no network.
PUT 'file://<% files %>/*' '@<% code_stage %>'
    AUTO_COMPRESS = FALSE
    OVERWRITE = TRUE;

-- VOLATILE: a file can change, and what failed today can succeed tomorrow.
-- RUNTIME_VERSION: 3.11 or newer. PACKAGES: what the handler imports, from PyPI. ai-edge-litert has wheels
-- for x86 and for ARM, so any warehouse will do. To run the .h5 itself with TensorFlow, put 'tensorflow',
-- 'keras' and 'h5py' in its place.
CREATE OR REPLACE FUNCTION <% function %>(file_url VARCHAR)
    COPY GRANTS
    RETURNS VARIANT
    LANGUAGE PYTHON
    RETURNS NULL ON NULL INPUT
    VOLATILE
    RUNTIME_VERSION = '3.11'
    COMMENT = 'Classifies the image behind a scoped URL'
    ARTIFACT_REPOSITORY = snowflake.snowpark.pypi_shared_repository
    IMPORTS = (
        '@<% code_stage %>/ext_classify_udf.py',
        '@<% code_stage %>/ext_classify.zip',
        '@<% code_stage %>/<% network %>.h5',
        '@<% code_stage %>/<% network %>.json',
        '@<% code_stage %>/<% network %>.tflite',
        '@<% code_stage %>/<% network %>.tflite.json'
    )
    PACKAGES = (
        'ai-edge-litert>=2.3',
        'numpy>=2.3',
        'pandas',
        'pillow>=13.0',
        'pybase64>=1.5',
        'pydantic>=2.13',
        'snowflake-snowpark-python',
        'typing-extensions>=4.15'
    )
    HANDLER = 'ext_classify_udf.classify';

-- CALLED ON NULL INPUT: options of NULL are no options, and a file_url of NULL is answered with NULL.
CREATE OR REPLACE FUNCTION <% function %>(file_url VARCHAR, options OBJECT)
    COPY GRANTS
    RETURNS VARIANT
    LANGUAGE PYTHON
    CALLED ON NULL INPUT
    VOLATILE
    RUNTIME_VERSION = '3.11'
    COMMENT = 'Classifies the image behind a scoped URL; options are {evidence: true}'
    ARTIFACT_REPOSITORY = snowflake.snowpark.pypi_shared_repository
    IMPORTS = (
        '@<% code_stage %>/ext_classify_udf.py',
        '@<% code_stage %>/ext_classify.zip',
        '@<% code_stage %>/<% network %>.h5',
        '@<% code_stage %>/<% network %>.json',
        '@<% code_stage %>/<% network %>.tflite',
        '@<% code_stage %>/<% network %>.tflite.json'
    )
    PACKAGES = (
        'ai-edge-litert>=2.3',
        'numpy>=2.3',
        'pandas',
        'pillow>=13.0',
        'pybase64>=1.5',
        'pydantic>=2.13',
        'snowflake-snowpark-python',
        'typing-extensions>=4.15'
    )
    HANDLER = 'ext_classify_udf.classify';
