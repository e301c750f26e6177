-- Creates the function as a Python function in the warehouse: no service, no gateway. It reads scoped URLs.
-- Run by a role with CREATE STAGE and CREATE FUNCTION on the schema and the database role
-- SNOWFLAKE.PYPI_REPOSITORY_USER, which PUBLIC has by default, with a warehouse, from a client that can
-- upload (not Snowsight). The role owns the functions and must keep READ on the code stage. `files` is the
-- folder that `python -m app.provisioning.udf_bundle FOLDER` wrote, with forward slashes; `network` is the
-- name of the network in it, without .h5.

USE SCHEMA <% database %>.<% schema %>;

-- Resolves the packages as the functions do: if it fails, so will CREATE FUNCTION.
SELECT SYSTEM$RESOLVE_PYTHON_PACKAGES(
    '3.11',
    $$('ai-edge-litert>=2.3', 'kornia-rs>=0.2', 'numpy>=2.3', 'pandas', 'pillow>=13.0',
    'pybase64>=1.5', 'pydantic>=2.13', 'snowflake-snowpark-python', 'typing-extensions>=4.15')$$,
    'snowflake.snowpark.pypi_shared_repository'
);

-- A stage for the code and the network, separate from the images. The functions need all of its files.
CREATE STAGE IF NOT EXISTS <% code_stage %>
    COMMENT = 'What ext_classify runs inside a warehouse';

-- AUTO_COMPRESS = FALSE: Python cannot import gzipped files.
PUT 'file://<% files %>/*' '@<% code_stage %>'
    AUTO_COMPRESS = FALSE
    OVERWRITE = TRUE;

-- VOLATILE: a file can change, and a failed row can succeed later.
-- RUNTIME_VERSION: 3.11 or newer. PACKAGES: the handler's imports, from PyPI. ai-edge-litert has wheels for
-- x86 and ARM, so any warehouse works. To run the .h5 file with TensorFlow, replace ai-edge-litert by
-- 'tensorflow', 'keras' and 'h5py'.
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
        'kornia-rs>=0.2',
        'numpy>=2.3',
        'pandas',
        'pillow>=13.0',
        'pybase64>=1.5',
        'pydantic>=2.13',
        'snowflake-snowpark-python',
        'typing-extensions>=4.15'
    )
    HANDLER = 'ext_classify_udf.classify';

-- CALLED ON NULL INPUT: NULL options mean the defaults. The function returns NULL for a NULL file_url.
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
        'kornia-rs>=0.2',
        'numpy>=2.3',
        'pandas',
        'pillow>=13.0',
        'pybase64>=1.5',
        'pydantic>=2.13',
        'snowflake-snowpark-python',
        'typing-extensions>=4.15'
    )
    HANDLER = 'ext_classify_udf.classify';
